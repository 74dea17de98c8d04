"""In the place of a package that Jupyter brings along, and that is never called here.

Each process of Ray imports it, through jsonschema, and that is three quarters of the time in which
it starts: the package builds a grammar. Where it cannot be imported, jsonschema does without it.
"""

raise ImportError("Ray starts several times as fast without it")
