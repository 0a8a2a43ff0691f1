"""What a recipe may say about series. Imports nothing heavy: recipes are checked with it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmdd.modalities.nets.options import Positive
from mmdd.modalities.tables.options import TableData
from mmdd.modalities.timeseries.encoder_options import AUGMENTATIONS, ENCODERS

Border = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]


class SeriesData(TableData):
    """The ``data:`` section of a recipe whose modality is timeseries."""

    source: str | None = Field(
        None,
        description="a name on the Hugging Face Hub, or a local folder or file: parquet or CSV, or "
        "UCR/UEA files NAME_TRAIN.ts and NAME_TEST.ts",
    )
    task: Literal["classification", "regression", "forecasting"] | None = Field(
        None, description="filled in by the recipe's task"
    )
    values: str | list[str] | None = Field(
        None,
        description="column of the series, or one column for every channel; by default the one "
        "that is clear, and in a table to forecast all columns of numbers",
    )
    order: Literal["auto", "TC", "CT"] = Field(
        "auto",
        description="axes of a series: 'TC' time first, 'CT' channels first; 'auto': the axis "
        "whose length varies, else the longer one, is time",
    )
    ragged: Literal["pad", "crop"] = Field(
        "pad",
        description="series of several lengths: 'pad' with a mask, or 'crop' to the shortest one "
        "in training",
    )
    length: Positive | None = Field(
        None, description="time steps kept of a series, from its start; shorter ones are padded"
    )
    missing: Literal["error", "zero", "linear"] = Field(
        "error",
        description="NaN: refused; or set to the channel's training mean ('zero' once normalised); "
        "or interpolated in time",
    )
    normalise: Literal["channel", "none"] = Field(
        "channel", description="mean 0 and deviation 1 of every channel over the training items"
    )
    bins: Positive = Field(
        5, description="regression: quantiles of the training values, matched group by group"
    )
    time: str | None = Field(
        None, description="forecasting: column of the time stamps; found by name or type"
    )
    input_length: Positive = Field(96, description="forecasting: time steps that are given")
    horizon: Positive = Field(96, description="forecasting: time steps that are forecast")
    stride: Positive = Field(
        1, description="forecasting: steps between two training windows; all others are scored"
    )
    borders: list[Border] = Field(
        default=[0.7, 0.1, 0.2],
        min_length=3,
        max_length=3,
        description="forecasting: rows of training, validation and test, one after another: shares "
        "(below 1) or numbers of rows",
    )
    leak: bool = Field(
        False,
        description="forecasting, for comparison with papers alone: validation is the test part, "
        "and the whole series is normalised by all of its rows",
    )
    season: Positive | None = Field(
        None, description="forecasting: steps of a season, for the seasonal-naive baseline"
    )

    @model_validator(mode="after")
    def _borders_fit(self) -> Self:
        shares = [border for border in self.borders if isinstance(border, float)]
        if shares and any(isinstance(border, int) and border for border in self.borders):
            raise ValueError("borders are three shares (0.7, 0.1, 0.2) or three numbers of rows")
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"the shares of borders add up to {sum(shares):g}, more than 1")
        if not self.borders[0]:
            raise ValueError("borders leave no row to train on")
        return self


DATA = SeriesData
"""The model of the ``data:`` section, under the name that every modality gives it."""

HINTS = {"encoders": "mlp,resnet", "export": "parquet my_series"}
"""Words for the commands that are proposed after a run."""

__all__ = ["AUGMENTATIONS", "DATA", "ENCODERS", "HINTS", "SeriesData"]
