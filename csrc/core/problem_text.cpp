// Problem <-> string. print and parse share one grammar, stated in problem.h.
#include <charconv>
#include <stdexcept>
#include <vector>

#include "problem.h"

namespace fastconv {

namespace {

std::string number(double value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

std::string pair(const char* letter, int64_t a, int64_t b, int64_t skip) {
  if (a == skip && b == skip) return {};
  std::string text = std::string("_") + letter + std::to_string(a);
  return a == b ? text : text + "x" + std::to_string(b);
}

std::string padding(const Axis& h, const Axis& w) {
  if (h.pad_lo == h.pad_hi && w.pad_lo == w.pad_hi) return pair("p", h.pad_lo, w.pad_lo, 0);
  auto sides = [](const Axis& a) { return std::to_string(a.pad_lo) + ":" + std::to_string(a.pad_hi); };
  return "_p" + sides(h) + "x" + sides(w);
}

// A cursor over one word of the string.
struct Word {
  std::string_view rest;
  std::string_view whole;

  [[noreturn]] void fail() const {
    throw std::invalid_argument("Problem string: cannot read the word '" + std::string(whole) +
                                "'; the form is n8c64h56w56_k64r3s3_u2_p1_d1_g1_f32nhwc.");
  }
  bool eat(std::string_view prefix) {
    if (!rest.starts_with(prefix)) return false;
    rest.remove_prefix(prefix.size());
    return true;
  }
  template <class T>
  T value() {
    T out{};
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), out);
    if (error != std::errc{}) fail();
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
    return out;
  }
  int64_t after(std::string_view prefix) {
    if (!eat(prefix)) fail();
    return value<int64_t>();
  }
  void done() const {
    if (!rest.empty()) fail();
  }
};

void parse_pair(Word& word, int64_t& a, int64_t& b) {
  a = b = word.value<int64_t>();
  if (word.eat("x")) b = word.value<int64_t>();
}

void parse_padding(Word& word, Axis& h, Axis& w) {
  h.pad_lo = h.pad_hi = word.value<int64_t>();
  if (word.eat(":")) h.pad_hi = word.value<int64_t>();
  w.pad_lo = h.pad_lo, w.pad_hi = h.pad_hi;
  if (!word.eat("x")) return;
  w.pad_lo = w.pad_hi = word.value<int64_t>();
  if (word.eat(":")) w.pad_hi = word.value<int64_t>();
}

bool parse_type(Word word, Problem& p) {
  for (size_t d = 0; d < Dtype_names.size(); ++d)
    for (size_t l = 0; l < Layout_names.size(); ++l)
      if (word.rest == std::string(Dtype_names[d]) + std::string(Layout_names[l])) {
        p.dtype = static_cast<Dtype>(d), p.layout = static_cast<Layout>(l);
        return true;
      }
  return false;
}

void parse_word(Word word, Problem& p) {
  if (word.rest == "ceil") return void(p.ceil_mode = true);
  if (word.rest == "nopad") return void(p.count_include_pad = false);
  if (word.rest == "train") return void(p.training = true);
  if (word.rest == "bias") return void(p.epilogue.bias = true);
  if (word.rest == "res") return void(p.epilogue.residual = true);
  if (word.rest == "packed") return void(p.packed = true);
  if (word.rest == "scale") return void(p.scale = true);
  if (word.rest == "corners") return void(p.corners = true);
  if (word.rest == "mask") return void(p.mask = true);
  if (auto pass = Pass_from(word.rest)) return void(p.pass = *pass);
  if (parse_type(word, p)) return;
  if (word.eat("index")) {  // spelled out, because a bare u8 is stride 8
    const auto index = Index_from(word.rest);
    if (!index) word.fail();
    return void(p.index = *index);
  }
  // The longest activation name first, so that relu6 is not read as relu.
  if (word.eat("leakyrelu")) {
    p.epilogue.activation = Activation::leaky_relu;
    p.epilogue.alpha = word.value<double>();
  } else if (auto activation = Activation_from(word.rest); activation && *activation != Activation::none) {
    return void(p.epilogue.activation = *activation);
  } else if (word.eat("size")) {
    p.size = word.value<int64_t>();
  } else if (word.eat("div")) {
    p.divisor_override = word.value<int64_t>();
  } else if (word.eat("in")) {
    p.in_offset = word.value<int64_t>();
    p.in_channels = word.after("of");
  } else if (word.eat("out")) {
    p.epilogue.out_offset = word.value<int64_t>();
    p.epilogue.out_channels = word.after("of");
  } else if (word.eat("k")) {
    p.k = word.value<int64_t>();
    p.h.window = word.after("r"), p.w.window = word.after("s");
  } else if (word.eat("r")) {
    p.h.window = word.value<int64_t>(), p.w.window = word.after("s");
  } else if (word.eat("n")) {
    p.n = word.value<int64_t>();
    p.c = word.after("c"), p.h.in = word.after("h"), p.w.in = word.after("w");
  } else if (word.eat("o")) {
    parse_pair(word, p.h.out, p.w.out);
  } else if (word.eat("u")) {
    parse_pair(word, p.h.stride, p.w.stride);
  } else if (word.eat("d")) {
    parse_pair(word, p.h.dilation, p.w.dilation);
  } else if (word.eat("p")) {
    parse_padding(word, p.h, p.w);
  } else if (word.eat("g")) {
    p.groups = word.value<int64_t>();
  } else {
    word.fail();
  }
  word.done();
}

}  // namespace

std::string Problem::text() const {
  auto str = [](int64_t v) { return std::to_string(v); };
  std::string out;
  if (!is_conv()) out += std::string(name_of(op)) + "_";
  out += "n" + str(n) + "c" + str(c) + "h" + str(h.in) + "w" + str(w.in);
  if (names_output()) {
    out += "_o" + str(h.out) + "x" + str(w.out);
  } else if (is_attention()) {
    out += "_k" + str(k) + "r" + str(h.window) + "s1";
  } else if (!keeps_size()) {
    out += "_" + (is_conv() ? "k" + str(k) : std::string()) + "r" + str(h.window) + "s" + str(w.window);
    out += pair("u", h.stride, w.stride, 1) + padding(h, w) + pair("d", h.dilation, w.dilation, 1);
  }
  if (is_lrn()) out += "_size" + str(size);
  if ((is_conv() || is_attention()) && groups != 1) out += "_g" + str(groups);
  out += "_" + std::string(name_of(dtype)) + std::string(name_of(layout));
  if (pass != Pass::fprop) out += "_" + std::string(name_of(pass));
  if (training) out += "_train";
  if (ceil_mode) out += "_ceil";
  if (!count_include_pad) out += "_nopad";
  if (divisor_override) out += "_div" + str(divisor_override);
  if (index != Index::none) out += "_index" + std::string(name_of(index));
  if (scale) out += "_scale";
  if (corners) out += "_corners";
  if (mask) out += "_mask";
  if (epilogue.bias) out += "_bias";
  if (epilogue.residual) out += "_res";
  if (epilogue.activation == Activation::leaky_relu) {
    out += "_leakyrelu" + number(epilogue.alpha);
  } else if (epilogue.activation != Activation::none) {
    out += "_" + std::string(name_of(epilogue.activation));
  }
  if (in_channels) out += "_in" + str(in_offset) + "of" + str(in_channels);
  if (epilogue.out_channels) out += "_out" + str(epilogue.out_offset) + "of" + str(epilogue.out_channels);
  if (packed) out += "_packed";
  return out;
}

Problem parse_problem(std::string_view text) {
  Problem p;
  bool first = true;
  while (!text.empty() || first) {
    const size_t end = std::min(text.find('_'), text.size());
    const std::string_view word = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (first) {
      first = false;
      if (auto op = Op_from(word)) {
        p.op = *op;
        continue;
      }
    }
    parse_word({word, word}, p);
  }
  if (!p.is_conv() && !p.is_attention()) p.k = p.c;
  if (auto sentence = invalid(p); !sentence.empty()) throw std::invalid_argument("Problem string: " + sentence);
  if (p.is_attention()) {
    p.h.out = p.h.in, p.w.out = p.w.in;
  } else if (!p.names_output()) {
    p.h.out = window_output(p.h, p.ceil_mode);
    p.w.out = window_output(p.w, p.ceil_mode);
    if (p.h.out < 1 || p.w.out < 1)
      throw std::invalid_argument("Problem string: the window " + std::to_string(p.h.window) + "x" +
                                  std::to_string(p.w.window) + " is larger than the padded input.");
  }
  return p;
}

}  // namespace fastconv
