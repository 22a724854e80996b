"""Models for the command line to load, good and bad."""

from torch import nn


def small():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(conv, conv, nn.MaxPool2d(2))


def number():
    return 3


def fails():
    return 1 / 0
