"""What runs a converted folder: sessions, and what asks the machine which kernels are exact and fast on it."""
