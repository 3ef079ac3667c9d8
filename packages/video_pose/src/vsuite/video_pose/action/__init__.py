"""Recognising what people do: data, training, prediction, evaluation."""
