"""What the benchmark and the soak have measured, release by release, and the page that is made of the soak's.

The benchmark itself is `everstep bench`, in `console/everstep/bench`.
"""
