"""The engine: the one place that compares trees and moves the differences."""
