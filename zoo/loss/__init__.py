"""What trainings minimise beside, or instead of, the distance to the truth."""
