"""Planning jointly: recipe, signal and threshold together, the cheapest that certifies.

Owns the comparison, the choice and the plan's folder. What quantizes, scores and certifies is other rooms'.
"""

from edgewise.jobs.planning.job import PlanJob
from edgewise.jobs.planning.plan import Planned, plan_with_cloud, plan_with_predictions

__all__ = ["PlanJob", "Planned", "plan_with_cloud", "plan_with_predictions"]
