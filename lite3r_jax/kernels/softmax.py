"""Constants of the softmax in base 2 that all attention kernels share; needs no kernel compiler."""

LOG2E = 1.4426950408889634
# Both finite, so that no difference is NaN. A running maximum starts, and stays where no key is
# seen, so far above a masked logit that exp2(MASKED - maximum) is 0.
LOWEST = -1e30
MASKED = -2e30
