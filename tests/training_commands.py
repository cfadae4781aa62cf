"""The commands of training as a process, for tests.

training_commands.py edge|cloud OPTIONS
"""

import sys

import typer


def main():
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if sys.argv[1] == "edge":
        from edge_worker.training.command import train
    else:
        from cloud_worker.training.command import train
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(train)
    command = typer.main.get_command(app)
    sys.exit(command.main(sys.argv[2:], standalone_mode=False))


if __name__ == "__main__":
    main()
