"""Train a policy: `python train.py experiment=quickstart`; `python train.py --help` lists what there is to choose."""

from robovlms.cli.main import train

if __name__ == "__main__":
    train()
