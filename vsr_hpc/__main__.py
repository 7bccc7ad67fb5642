from vsr_hpc.cli.main import main

main()
