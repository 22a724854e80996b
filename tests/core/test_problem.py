"""A problem and its string are one; what is no problem says why."""

from __future__ import annotations

import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv.problem import Problem
from fastconv.testing import corpus, fuzz

PLAIN = "n8c64h56w56_k64r3s3_p1_f32nhwc"


@given(st.integers(0, 2**62))
@settings(max_examples=300, deadline=None)
def test_string_and_problem_are_inverse(seed):
    problem = fuzz.random_problem(random.Random(seed))
    again = Problem(str(problem))
    assert again == problem and hash(again) == hash(problem) and str(again) == str(problem)
    assert pickle.loads(pickle.dumps(problem)) == problem


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=200, deadline=None)
def test_the_slope_survives_to_the_last_bit(alpha):
    problem = Problem(PLAIN).replace(activation="leaky_relu", alpha=alpha)
    assert Problem(str(problem)).alpha == alpha


@pytest.mark.parametrize("name", corpus.names())
def test_corpora_round_trip(name):
    for problem in corpus.load(name):
        assert Problem(str(problem)) == problem


@given(st.text(alphabet="nchwkrsupdgof0123456789x:_-.", max_size=40))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_problem_or_a_sentence(text):
    try:
        assert Problem(str(Problem(text))) == Problem(text)
    except ValueError as error:
        assert str(error).endswith(".")


@given(st.integers(0, len(PLAIN)), st.characters(min_codepoint=32, max_codepoint=126))
@settings(max_examples=300, deadline=None)
def test_one_wrong_character_never_changes_a_problem_unseen(place, character):
    text = PLAIN[:place] + character + PLAIN[place + 1 :]
    try:
        problem = Problem(text)
    except ValueError:
        return
    assert Problem(str(problem)) == problem


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"groups": 7}, "divisible"),
        ({"groups": 0}, "positive"),
        ({"n": -1}, "negative"),
        ({"out_offset": 1, "out_channels": 64}, "slice"),
        ({"n": 2**62}, "2\\^63"),
        ({"activation": "tanh"}, "tanh"),
        ({"colour": 1}, "exist"),
    ],
)
def test_replace_refuses_with_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Problem(PLAIN).replace(**changes)


def test_every_field_tells_problems_apart():
    base = Problem(PLAIN)
    changes = [
        {"n": 9}, {"c": 32}, {"k": 32}, {"groups": 2}, {"dtype": "f64"}, {"layout": "nchw"}, {"pass_": "dgrad"},
        {"bias": True}, {"residual": True}, {"activation": "relu"}, {"out_channels": 65},
        {"out_offset": 1, "out_channels": 65},
    ]  # fmt: skip
    problems = [base, *(base.replace(**change) for change in changes)]
    assert len(set(problems)) == len({str(p) for p in problems}) == len(problems)


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    "text",
    [
        f"n1c1h1w1_k1r{HUGE}s1_f32nhwc",
        f"n1c1h5w5_k1r3s3_u{HUGE}_f32nhwc",
        f"n1c1h5w5_k1r3s3_p{HUGE}_f32nhwc",
        f"n1c1h5w5_k1r3s3_p0:-{HUGE}x0_f32nhwc",
        f"n1c1h5w5_k1r3s3_d{HUGE}_f32nhwc",
        f"n0c1h{HUGE}w1_k1r1s1_p1_f32nhwc",
        f"n{2**40}c{2**40}h1w1_k1r1s1_f32nhwc",
        f"adaptiveavg2d_n0c1h5w5_o{HUGE}x1_f32nhwc",
        f"maxpool2d_n1c1h5w5_r2s2_u{HUGE}_f32nhwc_ceil",
        f"n1c1h5w5_k1r3s3_p{HUGE + 1}_f32nhwc",
    ],
)
def test_numbers_too_large_for_64_bits_of_arithmetic_are_refused(text):
    with pytest.raises(ValueError, match=r"^Problem string: "):
        Problem(text)


@pytest.mark.parametrize(
    "text",
    [
        "n1c64h5w4_k8r3s3_p1_f32nhwc_bias_relu_packed",
        "map2d_n2c12h7w5_f32nhwc_scale_res_silu_in4of32_out0of64",
        "batchnorm2d_n1c64h7w9_f32nhwc_relu_in0of256",
        "reorder2d_n8c3h224w128_f32nchw",
        "bilinear2d_n8c21h28w20_o224x100_f32nhwc_corners",
        "nearest2d_n8c21h28w20_o224x100_f32nhwc",
    ],
)
def test_words_of_plans_survive(text):
    assert str(Problem(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("n1c64h5w4_k8r3s3_f32nhwc_wgrad_packed", "take a packed filter"),
        ("map2d_n1c8h2w2_f32nhwc_in60of64", "starts at channel 60 and holds 8 channels, but the buffer has 64"),
    ],
)
def test_impossible_plans_are_refused(text, why):
    with pytest.raises(ValueError, match=why):
        Problem(text)
