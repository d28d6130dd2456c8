"""The writer: from the content of a report to its file."""

from __future__ import annotations

import os
from pathlib import Path

from ..utils.arguments import check_file_to_write
from ..utils.errors import ArgumentError
from ..utils.files import write_text
from .content import ReportContent
from .layer_facts import facts_of
from .page import whole_page
from .sections import (
    coupling_section,
    curve_sections,
    filter_sections,
    headline,
    image_section,
    layer_section,
    note_section,
    score_section,
    sensitivity_section,
)
from .sweep import sweep_section
from .weights import check_filter_names


def write_report(path: str | os.PathLike[str], content: ReportContent) -> Path:
    """Writes a report: the whole file, or nothing if anything fails.

    Args:
        path: The HTML file; one of that name is replaced.
        content: What is known.

    Returns:
        The absolute path.

    Raises:
        InputError: The path cannot be written to, or images that no detector takes.
        LayerError: Filters of a layer that does not exist, or that has none.
        ArgumentError: Filters or images without the original.
        MissingExtraError: matplotlib is not installed.
    """
    file = check_file_to_write("path", path)
    if content.original is None:
        for name, given in (("filters", content.filters), ("images", content.images)):
            if given:
                raise ArgumentError(f"{name}: the network before pruning is needed too: give original=")
    plan = content.plan
    check_filter_names(plan, content.filters)
    facts = facts_of(content)
    sections = [*curve_sections(content.charts), layer_section(facts, content.spread)]
    if plan.sets:
        sections.append(score_section(plan))
    if content.links:
        sections.append(coupling_section(content, facts))
    if content.sensitivity is not None:
        sections.append(sensitivity_section(content.sensitivity, plan))
    if content.sweep is not None:
        sections.append(sweep_section(content, content.sweep))
    if content.original is not None:
        sections += filter_sections(content.original, plan, facts, content.filters)
    if content.images:
        sections.append(image_section(content))
    if plan.notes:
        sections.append(note_section(plan))
    page = whole_page(content.title, headline(content, facts), sections)
    write_text(file, page.encode(errors="backslashreplace").decode())  # a path may have bytes that are not UTF-8
    return file
