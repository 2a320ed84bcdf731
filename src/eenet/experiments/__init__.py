"""Everything that exists to repeat the paper and to show results: data sets, models, recipes, whole experiments."""
