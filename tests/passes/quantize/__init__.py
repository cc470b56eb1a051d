"""A package, since test files of its names lie in other folders too."""
