"""What a job needs, before it starts: the files it reads, the room it takes, the plan it follows.

`preflight` looks at the file system; `plan` is pure: (spec, inventory) -> Plan. Both refuse with a
`SpecError` that names the field, the value, the limit and the remedy. Imports neither torch nor
ray.
"""

from .capacity import Inventory, Node, Plan, RolePlan, check_roles_fit, plan
from .checks import check_run_folder, preflight

__all__ = [
    "Inventory",
    "Node",
    "Plan",
    "RolePlan",
    "check_roles_fit",
    "check_run_folder",
    "plan",
    "preflight",
]
