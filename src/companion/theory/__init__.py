"""The mathematics: derivations in SymPy, and the NumPy functions made from them."""
