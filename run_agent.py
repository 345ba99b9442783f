"""The command line: `python run_agent.py --help`."""

from stream_agent.cli import main

if __name__ == "__main__":
    main()
