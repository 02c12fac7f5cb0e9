//! What every kernel runs on: threads and the choice of instruction set.
