"""What your own tasks let one learn: ``diagnose`` takes them, a ``Diagnosis`` comes out.

``observed``: tasks known by moments, or by data sets. ``comparisons``: what starts and steps leave,
with intervals. ``report``: the diagnosis, its table, picture and advice. ``task_files``: tasks in
files.
"""

from companion.diagnosis.report import Diagnosis, Groups, advise, diagnose

__all__ = ["Diagnosis", "Groups", "advise", "diagnose"]
