"""Training steps spent before, between and after the cuts: sparse training, rounds, a teacher."""
