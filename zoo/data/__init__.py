"""Data modules and the files behind them."""
