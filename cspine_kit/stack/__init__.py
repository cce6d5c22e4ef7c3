"""Stack: from slice tables to eight calibrated numbers. The only room that knows LightGBM."""
