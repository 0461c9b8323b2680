"""The torch halves of the tasks, and transfer learning. Reached only through dotted paths; extra ``[train]``."""
