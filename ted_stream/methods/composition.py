"""Which words a method can be put together from, and which make sense together."""

from typing import Any

from ted_stream.methods.choices import CHOICES, CLASS_SHARES
from ted_stream.pruning.measures import MEASURES, SITES
from ted_stream.pruning.settings import check_choice, check_flag, check_number

__all__ = ["checked_words"]

_SCORES = ("mean", "deviation", "uncertainty")
_WEIGHTS = ("none", "keep_ratio", "inverse_probability")
_PROBABILITIES = ("correct", "true_probability")
_BELOW_ZERO = ("logit_margin",)  # there is no draw in proportion to such scores


def checked_words(method: Any) -> dict[str, Any]:
    """Settings of a composed method, as Python's own numbers and words.

    Raises:
        ValueError: for a value out of range, or words that make no sense together.
        TypeError: for a value of another type.
    """
    check_choice("importance", method.importance, MEASURES)
    check_choice("score", method.score, _SCORES)
    check_choice("choice", method.choice, CHOICES)
    check_choice("weights", method.weights, _WEIGHTS)
    if method.site is not None:
        check_choice("site", method.site, SITES)
    if method.class_shares is not None:
        check_choice("class_shares", method.class_shares, CLASS_SHARES)
    check_flag("relative", method.relative, fix="it divides measurements by the mean importance of their time.")
    check_flag("clip_chance", method.clip_chance, fix="it takes losses above that of a guess as that.")
    numbers = {
        "alpha": ("[0, 1)", "it is the weight of the past in the running score."),
        "floor": ("[0, inf)", "it is a share of the mean score."),
        "clip_quantile": ("(0, 1)", "scores above this quantile of all are taken as that."),
        "temperature": ("(0, inf)", "scores are drawn in proportion to score^(1 / temperature)."),
    }
    checked = {
        name: check_number(name, getattr(method, name), bounds, fix=fix)
        for name, (bounds, fix) in numbers.items()
        if getattr(method, name) is not None or name in ("alpha", "floor")
    }
    _refuse_what_makes_no_sense(method)
    return checked


def _refuse_what_makes_no_sense(method: Any) -> None:
    importance, is_mean = method.importance, method.score == "mean"
    is_drawn, is_inverse = method.choice in ("sampled", "even"), method.weights == "inverse_probability"
    is_loss = importance == "loss" and is_mean and not method.relative
    by_temperature = method.choice == "sampled" and not is_inverse
    no_mask = importance != "mask_gradient"
    for name, is_wrong, because in (
        ("site", method.site is not None and no_mask, "importance has no mask"),
        ("norm", method.norm is not None and no_mask, "importance has no mask"),
        ("score", method.score == "uncertainty" and importance not in _PROBABILITIES, "importance is no probability"),
        ("alpha", not is_mean and not method.alpha, "without a past there is no deviation"),
        ("relative", method.relative and not is_mean, "score is no mean"),
        ("clip_chance", method.clip_chance and not is_loss, "score is no loss"),
        ("choice", is_drawn and is_mean and importance in _BELOW_ZERO, "scores lie below zero too"),
        ("temperature", method.temperature is not None and not by_temperature, "nothing is drawn by it"),
        ("floor", method.floor > 0 and not is_drawn, "nothing is drawn"),
        ("class_shares", method.class_shares == "by_loss" and not is_loss, "score is no loss"),
        ("weights", is_inverse and not is_drawn, "choice keeps the same samples for certain"),
        ("weights", is_inverse and not method.floor, "floor is 0, so that nothing bounds them"),
    ):
        if is_wrong:
            words = ", ".join(
                f"{word}={getattr(method, word)!r}" for word in ("importance", "score", "choice", "weights")
            )
            raise ValueError(
                f"{name} is {getattr(method, name)!r}, but {because} ({words}). Leave {name} out, or change what it "
                "goes with."
            )
