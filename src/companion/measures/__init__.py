"""What is measured of trained fleets besides their risks, for any experiment."""
