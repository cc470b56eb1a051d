"""`python -m wageubn_onnx.cli`."""

from wageubn_onnx.cli import cli

if __name__ == "__main__":
    cli()
