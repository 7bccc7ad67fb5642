from vsr_hpc.cli import main

main()
