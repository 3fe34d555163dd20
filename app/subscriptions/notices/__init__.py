"""Notices: what is sent.

composer           makes a message of delivery rows
event_reader       reads the pinned version, and what travels along
envelope           has what all notices of a Subscription share, and what all notices of one event share
notification       builds the notification Bundle
davinci_message    builds a Da Vinci message
davinci_stay       shapes a stay as the Da Vinci profiles want it
named_references   puts names beside the references of full resources
required_names     finds the three names that a notice of a hospital stay owes its reader
"""
