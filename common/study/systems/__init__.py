"""Studies of three related systems with measures of their own: EM-DPO, Dynamic Blocking and ReverseGen."""
