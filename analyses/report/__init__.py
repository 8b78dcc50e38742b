"""The report: figures, and one page that says what was compared, what came out, how sure it is."""

from .html import render_report as render_report
