"""The study: parameters, runner, verdicts, report, command line. It uses the core; the core knows nothing of it."""
