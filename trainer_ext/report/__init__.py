"""The report that people look at: ``report.html``, one file that works offline, printed, in light and in dark.

It takes plain data (``data``), read from a run's folder (``folder``), never from a model. Read ``data`` first, then
``page``; ``panels`` and ``drawing`` are its charts, ``pictures`` the PNG files of a run, ``gallery`` a task seen from
near, ``comparison`` several runs.
"""

from trainer_ext.report.data import ReportData
from trainer_ext.report.folder import report_of_measurement, report_of_run
from trainer_ext.report.page import write_report

__all__ = ["ReportData", "report_of_measurement", "report_of_run", "write_report"]
