"""The pages under ``docs/results``: no number stands here, all come from the JSON files that the scripts leave."""
