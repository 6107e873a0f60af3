"""selfcal's models inside other evaluation tools.

Their graders misread a response that begins with a rationale. So a wrapper returns the final answer
alone, and keeps the whole text elsewhere. `lmms_eval` and `vlmevalkit` are imported by those tools;
selfcal itself imports neither.
"""
