"""SubscriptionTopics: what fires, what can be filtered, what travels along.

topic_store            has the topics of files and of the database
topic_reader           compiles SubscriptionTopic JSON
topic_elements         reads its elements and notes every complaint
topic_shapes           reads its filters and notification shapes
topics                 are compiled topics: triggers, filters, the catalogue
compiled_conditions    are conditions that are asked again and again
trigger_functions      are what queryCriteria cannot say
trigger_context        looks up what these need: earlier notices, the facility of a stay
topic_aliases          gives topics further canonicals
topic_basic            shows a topic as a Basic resource

docs/topics.md
"""
