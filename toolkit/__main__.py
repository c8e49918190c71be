"""`python -m toolkit` is kdtool: for torchrun, `torchrun --nproc-per-node 2 -m toolkit distill …`."""

from toolkit.cli import main

if __name__ == "__main__":
    main()
