"""Attacks are functions of (model, x, y, threat).

The table `ATTACKS` gives the attacks for evaluation their settings.
"""

from kit.core.lazy import lazy_exports

_PLACES = {
    "ATTACKS": "table",
    "Attack": "table",
    "AttackResult": "tracker",
    "AttackTrace": "contract",
    "apgd": "auto_pgd",
    "autoattack": "auto_attack",
    "bia": "basic_iterative",
    "cw_l2": "carlini_wagner",
    "fab": "fast_adaptive_boundary",
    "fgsm": "fast_gradient_sign",
    "fmn": "fast_minimum_norm",
    "friendly_pgd": "friendly_pgd_attack",
    "lmpgd": "line_search_pgd",
    "md": "margin_decomposition",
    "mdmt": "margin_decomposition",
    "mifgsm": "momentum_iterative",
    "natural": "clean_images",
    "pgd": "projected_gradient_descent",
    "pgd_search": "pgd_evaluation",
    "spsa": "simultaneous_perturbation",
    "square": "square_attack",
}
__all__ = sorted(_PLACES)
__getattr__, __dir__ = lazy_exports(__name__, _PLACES)
