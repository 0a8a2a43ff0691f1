"""Time series: classes and values of whole series, and forecasts of one long series."""
