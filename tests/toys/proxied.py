"""The tiny federation as a stream of its two classes, with GLFC's proxy server."""

PROXIED = (
    "local.plan={kind: class_stream, tasks: [[normal], [pneumonia]], rounds_per_task: 2}",
    "local.rules=[{kind: glfc, old_model: proxy, prototype_size: 8, rebuilt_images: 3, rebuild_iterations: 10}]",
    "federation.regulator=[finite]",
    "task.class_balance=none",
    "stop.rounds=4",
    "evaluation.every=10",
)
OWN = (PROXIED[0], "local.rules=[glfc]", *PROXIED[2:])
SWITCH = 3
"""The first round of the second task."""
