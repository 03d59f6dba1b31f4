"""EM-DPO: annotators of hidden types, a policy for each type, and a mixture of the policies."""
