"""How other systems would run a job, on the same cost model. Nothing here is fitted to what they published."""
