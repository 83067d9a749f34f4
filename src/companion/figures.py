"""The look of the figures: one style sheet, one palette."""
