"""How far a judge's rate can be believed: label a few answers blind, and see by how much the judge is too kind.

In a notebook, one cell shows the answers and the sheet's mark, and another takes mark and labels, in the same order:

    from common.audit import blind_sheet, labelled_sheet
    blind_sheet("runs/small/safety")
    labelled_sheet("runs/small/safety", "3f90c2", "y n y s n")
"""

from common.audit.sheet import blind_sheet, labelled_sheet

__all__ = ["blind_sheet", "labelled_sheet"]
