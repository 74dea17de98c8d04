"""A study kit on instance-reweighted adversarial training.

    import kit
    run = kit.run(method="mail-at", recipe="digits", seed=0)     # trains, resumes or opens; kit.run_many takes many specs
    kit.evaluate(run, attacks=["natural", "fgsm", "pgd20", "cw20"])
    kit.draw("confused-labels", run)

Tables to look at: kit.METHODS, kit.RECIPES, kit.ATTACKS, kit.CRITERIA, kit.WEIGHTS, kit.FIGURES.
"""

from kit import papers, widgets
from kit.attacks import ATTACKS
from kit.audit import audit
from kit.criteria import CRITERIA
from kit.evaluate import confusion, evaluate, per_class, protected_table
from kit.explain import explain
from kit.figures import FIGURES, draw
from kit.memory import keep_freed_memory
from kit.methods import METHODS
from kit.recipes import RECIPES
from kit.runs import Run, device
from kit.spec import RunSpec
from kit.study import Study, begin
from kit.train import run, run_many
from kit.types import KitError, Threat
from kit.weights import WEIGHTS
from kit.whatif import whatif

__all__ = [
    "ATTACKS", "CRITERIA", "FIGURES", "METHODS", "RECIPES", "WEIGHTS", "KitError", "Run", "RunSpec", "Study", "Threat",
    "audit", "begin", "confusion", "device", "draw", "evaluate", "explain", "papers", "per_class", "protected_table", "run",
    "run_many", "whatif", "widgets"]

keep_freed_memory()
