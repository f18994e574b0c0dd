"""What is installed, what clashes and what to do: `environment` reads the machine, `findings` judges it."""
