"""Scripts that fit what the packs ship, and adapters of language models; nothing here is imported at run time.

Libraries read when they are imported whether they may ask a hub or report home, so this says no before any module here imports one.
"""

from stream_agent.planner.model_files import go_offline

go_offline()
