"""The generated tasks, and the small BERT that is pretrained on them."""
