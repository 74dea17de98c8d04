"""What a run is: recipes, its specification, and the handle on its folder."""
