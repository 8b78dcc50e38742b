"""Attacks."""

from .attack import Attacks

ATTACKS = attack = Attacks()
