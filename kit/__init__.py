"""A study kit on instance-reweighted adversarial training.

    import kit
    run = kit.run(method="mail-at", recipe="digits", seed=0)   # trains, resumes or opens
    kit.evaluate(run, attacks=["natural", "fgsm", "pgd20", "cw20"])
    kit.draw("confused-labels", run)

`kit.run_many` trains many runs at a time. Tables to look at:
kit.METHODS, kit.RECIPES, kit.ATTACKS, kit.MODELS, kit.CRITERIA, kit.WEIGHTS, kit.FIGURES.
"""

from kit.core.errors import KitError
from kit.core.lazy import lazy_exports

_PLACES = {
    "ATTACKS": "attacks.table",
    "CRITERIA": "methods.criteria",
    "FIGURES": "figures.table",
    "METHODS": "methods.table",
    "MODELS": "models.architectures",
    "RECIPES": "experiments.recipes",
    "WEIGHTS": "methods.weights",
    "Criterion": "methods.criteria",
    "Run": "experiments.runs",
    "RunSpec": "experiments.specification",
    "Study": "notebook.study",
    "Threat": "core.threat",
    "adopt": "training.adoption",
    "audit": "evaluation.robustness_audit",
    "begin": "notebook.study:begin_study",
    "confusion": "evaluation.class_tables",
    "device": "experiments.devices:pick_device",
    "draw": "figures.table",
    "evaluate": "evaluation.accuracy",
    "export_network": "experiments.network_export",
    "explain": "figures.explanation",
    "part": "core.parts",
    "per_class": "evaluation.class_tables",
    "protected_table": "evaluation.class_tables",
    "run": "training.runner",
    "run_many": "training.runner",
    "whatif": "evaluation.counterfactual:counterfactual_weights",
    **{
        package: f"{package}:"
        for package in (
            "attacks",
            "core",
            "data",
            "evaluation",
            "experiments",
            "figures",
            "jobs",
            "methods",
            "models",
            "notebook",
            "papers",
            "training",
            "widgets",
        )
    },
}
__all__ = ["KitError", *sorted(_PLACES)]
__getattr__, __dir__ = lazy_exports(__name__, _PLACES)
