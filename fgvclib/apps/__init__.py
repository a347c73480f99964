"""What people use by hand: explorer, live training, prediction, export."""
